"""The stages of RLFF-ESC: collect futures, fine-tune, learn the reward, train the policy.

`esc_env.training.config` has the settings of each stage; `docs/training.md` says how they go together.
"""

if __name__ != "esc_env.training":
    raise ImportError(f"import this package as esc_env.training, not as {__name__}")
