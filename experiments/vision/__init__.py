"""The image benchmarks of multi-task papers, at the papers' scale: NYUv2, Cityscapes, Office-31, Office-Home.

`nyuv2`, `cityscapes` and `office` read the files that LibMTL's examples read, `dense` holds losses and
metrics, and `training` the networks, the recipe and the table beside the paper's numbers. The data are not
shipped: each loader says where they come from.
"""
