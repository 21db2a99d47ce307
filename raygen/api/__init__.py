"""What a notebook or a program may call; `raygen` itself passes most of it on.

    import raygen
    run = raygen.tune("vae", {"data.source": "fashion-mnist", "search.trials": 8})
    images = raygen.load(run.name).sample(16, seed=0)

Functions take what the commands of the same names take. Nothing here imports torch or Ray before it is needed.
"""
