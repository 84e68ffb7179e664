"""Every system as a configuration that trains in seconds."""

POINTS = {"name": "moons", "rows": 100, "labels": 10, "monitor": 20}
DIGITS = {"name": "digits", "labels": 20, "monitor": 30}
TINY = {"sampling": {"batch": 16}, "steps": 4, "log_every": 2, "evaluate_every": 2, "checkpoint_every": 2,
        "device": "cpu"}
VECTORS = {"kind": "vector", "scales": 1, "steps": 1, "hidden": 8}
HEAD = {"kind": "flow", "levels": 1, "steps": 1, "hidden": 8, "blocks": 1}
TABULAR = {"kind": "tabular", "couplings": 2, "hidden": 8}
M1 = {"latent": 4, "hidden": [8], "init_std": None}

SYSTEMS = {
    "scnf of points": {"data": POINTS, "model": {"trunk": VECTORS, "head": HEAD}},
    "scnf with em over batches": {"data": POINTS, "model": {"trunk": VECTORS, "head": {"kind": "gaussian"}},
                                  "loss": {"em_steps": 3}},
    "scnf with em over epochs": {"data": POINTS, "model": {"trunk": VECTORS, "head": {"kind": "gaussian"}},
                                 "loss": {"em_refresh": "epoch"}},
    "fully conditional": {"data": POINTS, "model": {"trunk": VECTORS | {"steps": 0}, "head": HEAD}},
    "flowgmm of points": {
        "data": POINTS, "loss": {"view": 1.0, "pseudo": 1.0}, "optimizer": {"name": "adam", "head_lr": 0.01},
        "model": {"kind": "flowgmm", "trunk": TABULAR, "means": {"kind": "circle", "radius": 3.5}, "learn_means": True,
        "learn_scales": True}},
    "flowgmm of images": {
        "data": DIGITS, "schedule": {"name": "hold"}, "augmentation": {"pad": 1, "flip": True, "rotation": 5},
        "loss": {"classification": 2.5, "consistency": 1.0, "consistency_ramp": 3},
        "model": {"kind": "flowgmm", "trunk": {"kind": "real_nvp", "hidden": 4, "blocks": 1},
                  "means": {"kind": "latents"}}},
    "flowgmm of components": {
        "data": DIGITS | {"pca": 5}, "model": {"kind": "flowgmm", "trunk": TABULAR, "means": {"radius": 0.56}}},
    "m1": {"data": DIGITS | {"labels": 0}, "model": {"kind": "m1"} | M1},
    "m1 of vectors": {"data": POINTS | {"labels": 0}, "model": {"kind": "m1", "likelihood": "gaussian"} | M1},
    "m2": {"data": DIGITS, "model": {"kind": "m2", "latent": 3, "hidden": [8]}},
    "m2 of vectors": {"data": POINTS, "model": {"kind": "m2", "latent": 3, "hidden": [8], "likelihood": "gaussian"}},
    "m1m2": {"data": DIGITS, "pretrained": "m1", "model": {
        "kind": "m1m2", "m1": M1, "threshold": 0.0, "latent": 2, "hidden": [8]}},
    "tzk": {"data": DIGITS | {"labels": 200}, "optimizer": {"name": "adam", "lr": 1e-4},
            "model": {"kind": "tzk", "steps": 2, "hidden": 8, "knowledge_steps": 1}},
}
SYSTEMS = {name: TINY | config for name, config in SYSTEMS.items()}
