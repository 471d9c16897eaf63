# Every weather on every kind of street, with sensors of every height and every mix of vehicles, equally often:
# python tools/synthesize.py configs/synthesis/lidar-city_weather-tree.py --out data/lidar_city_tree
tree = dict(max_depth=4, n_pivots=24, seed=0)
generator = dict(type='LidarCityGenerator')
n_per_leaf = 1
city = dict(scans_per_scene=2, seed=0, columns=1024)
