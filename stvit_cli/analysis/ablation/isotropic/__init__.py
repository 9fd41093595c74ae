"""Table II of the supplement: Swin and STViT without stem, projection, CPE and ConvFFN. An ablation of its seven rows."""
