_base_ = './minkunet18_w8_spconv_1xb2-4e_lidar-city.py'

model = dict(
    backbone=dict(base_channels=16, encoder_channels=[16, 32, 64, 128], decoder_channels=[128, 64, 48, 48]),
    decode_head=dict(channels=48),
)
