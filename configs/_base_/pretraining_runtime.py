# What every run of pre-training on images needs.
_base_ = './runtime.py'

default_scope = 'mmengine'

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
