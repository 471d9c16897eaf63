# The recipe for ActivityNet: 1e-5 for CLIP and 1e-2 for what is new, 8 epochs; else as centerclip-5e.py.
_base_ = './centerclip-5e.py'
max_epochs = 8
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=0.1 * max_epochs)
param_scheduler[1].update(begin=0.1 * max_epochs, end=max_epochs)
train_cfg = dict(max_epochs=max_epochs)
