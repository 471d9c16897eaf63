# A CLIP of 0.5 M parameters with random weights, for 48-pixel videos and few words.
sizes = dict(hidden_size=64, intermediate_size=256, num_attention_heads=2, attention_dropout=0.0)
model = dict(
    type='clusterplug.CenterCLIP',
    encoders=dict(
        type='clusterplug.TransformersEncoders',
        config=dict(
            vision_config=dict(num_hidden_layers=4, image_size=48, patch_size=12, **sizes),
            text_config=dict(num_hidden_layers=2, vocab_size=64, max_position_embeddings=16, **sizes),
            projection_dim=64,
            logit_scale_init_value=3.4,
        ),
    ),
    head=dict(type='clusterplug.MeanPooling'),
)
