# MSR-VTT, 7,010 training videos with 20 captions each, tested on 1k-A.
# Files as in msrvtt-9k.py, but MSRVTT_train.7k.csv.
_base_ = './msrvtt-9k.py'
train_dataloader = dict(dataset=dict(split_file='MSRVTT_train.7k.csv', split='train-7k'))
