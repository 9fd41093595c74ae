"""The keys of recipes of version 0.2.0, which are in the hash of every recipe; see `io.recipe_hash`. Never to be changed."""

from __future__ import annotations

_KEYS = {
    "": "name description task",
    "model": "name in_chans drop_path_rate grid_sizes checkpointing",
    "data": "kind dir image_size mean std val_fraction num_workers unreadable",
    "augment": (
        "crop_scale crop_ratio interpolation hflip auto_augment random_erasing random_erasing_mode mixup "
        "cutmix mix_prob mix_switch_prob label_smoothing repeats"
    ),
    "optim": "lr scale_lr_from weight_decay decay_layer_scale betas eps clip_grad_norm layer_decay",
    "schedule": "kind epochs steps milestones warmup_epochs warmup_steps warmup_lr min_lr power update",
    "train": (
        "global_batch_size batch_size_per_device seed device precision compile kernels sync_bn ema_decay "
        "eval_every_epochs eval_every_steps log_every_steps tensorboard"
    ),
    "checkpoint": "every_steps every_minutes keep",
    "finetune": "freeze_norm freeze_backbone",
    "eval": "batch_size crop_pct",
    "detection": (
        "head train_json train_images val_json val_images keep_empty invalid_annotations exif_orientation "
        "short_sides long_side freeze_batch_norm channels fc_dim anchor_scale num_proposals num_samples "
        "score_threshold nms_threshold max_detections results_json"
    ),
    "segmentation": (
        "class_names train_images train_maps val_images val_maps image_suffix map_suffix reduce_zero_label "
        "label_values ignore_index max_size scale_range max_class_share photometric channels aux_channels "
        "aux_weight dropout window window_stride size_divisor eval_scales eval_flip"
    ),
    "shapes": "num_train num_val seed",
}

KEYS_OF_0_2 = frozenset(f"{section}.{key}" if section else key for section, keys in _KEYS.items() for key in keys.split())
