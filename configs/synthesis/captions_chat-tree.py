# Captions of street scenes by a chat model on a server of your own:
# python tools/synthesize.py configs/synthesis/captions_chat-tree.py --out work_dirs/captions --budget 5000 --workers 8
tree = dict(max_depth=3, n_pivots=10, max_values=50, seed=0)
generator = dict(
    type='ChatGenerator',
    task='A sample is a one-sentence caption of a street scene as a lidar on a car records it.',
    chat=dict(type='ChatEndpoint', url='http://localhost:8000/v1', model='Qwen2.5-7B-Instruct', timeout=120),
)
n_per_leaf = 10
