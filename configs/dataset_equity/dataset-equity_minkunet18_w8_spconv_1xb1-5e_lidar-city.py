# Weights of the training scans from
#   python tools/dataset_equity.py configs/point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py \
#       --checkpoint minkunet.pth --out work_dirs/equity_lidar-city
_base_ = '../point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'

likelihood = 'work_dirs/equity_lidar-city/likelihood.json'
model = dict(_delete_=True, type='clusterplug.WithSampleWeights', model=_base_.model, likelihood=likelihood)
