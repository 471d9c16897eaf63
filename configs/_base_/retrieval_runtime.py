# What every retrieval run needs, beside what every run needs.
_base_ = './default_runtime.py'

default_scope = 'mmengine'

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), visualization=None)
custom_hooks = [dict(type='clusterplug.UnreadableVideosHook')]
visualizer = dict(type='Visualizer')
randomness = dict(seed=42)
