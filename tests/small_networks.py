"""Parameters that make networks of the first-party plugins small, for tests of every network."""

SMALL_NETWORKS = {  # plugin -> component, or kind.component if two kinds share its name -> parameters
    "adm": {"adm-unet": {"multipliers": [1, 2], "blocks": 1, "attention": [2], "head_channels": 4}},
    "intervals": {"quantile-head": {"of": {"use": "unet", "width": 4}}},
    "pix2pixhd": {
        "pix2pixhd-global": {"downsamplings": 2, "blocks": 2},
        "pix2pixhd-local": {"downsamplings": 2, "blocks": 2, "local_blocks": 1},
    },
    "restoration": {
        "nafnet": {"encoder_blocks": [1, 1], "middle_blocks": 1, "decoder_blocks": [1, 1]},
        "restormer": {"blocks": [1, 1], "heads": [1, 2], "refinement_blocks": 1},
        "lama": {"downsamplings": 2, "blocks": 1},
        "attention-unet": {"levels": 3},
    },
    "spade": {"spade": {"upsamplings": 2}},
    "timm": {
        "timm-unet": {"backbone": "test_efficientnet"},
        "timm-projected": {"backbone": "test_efficientnet"},
    },
    "unet-d": {"unet-d": {"levels": 2}, "discriminator.oasis": {"levels": 2, "num_classes": 4}},
}
