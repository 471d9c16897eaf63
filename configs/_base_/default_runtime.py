# What every mmdet3d run needs.
_base_ = './runtime.py'

default_scope = 'mmdet3d'

default_hooks = dict(visualization=dict(type='Det3DVisualizationHook'))
visualizer = dict(type='Det3DLocalVisualizer')
