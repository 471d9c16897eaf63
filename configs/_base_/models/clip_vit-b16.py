# OpenAI's ViT-B/16: pretrained is a public name in this machine's cache, a folder of save_pretrained, or a file in
# OpenAI naming: --cfg-options model.encoders.pretrained=weights/ViT-B-16.pt
model = dict(
    type='clusterplug.CenterCLIP',
    encoders=dict(type='clusterplug.TransformersEncoders', pretrained='openai/clip-vit-base-patch16'),
    head=dict(type='clusterplug.MeanPooling'),
)
