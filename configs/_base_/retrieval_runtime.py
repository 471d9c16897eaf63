# What every retrieval run needs.
_base_ = './runtime.py'

default_scope = 'mmengine'

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
custom_hooks = [dict(type='clusterplug.UnreadableVideosHook')]
randomness = dict(seed=42)
