"""SkyRL's environment, played as SkyRL's generator plays it.

    python examples/skyrl_support.py

Needs `pip install 'esc-env[skyrl]'`.
"""

from __future__ import annotations

import skyrl_gym

from esc_env.integrations.conversations import rows


def main() -> None:
    """Hold the first four conversations of `esc eval`, and print what came of them."""
    skyrl_gym.register(id="esc", entry_point="esc_env.integrations.skyrl:SupportEnv")  # kwargs: seeker, critic, …
    for row in rows("builtin:test", env_class="esc")[:4]:
        env = skyrl_gym.make(row["env_class"], extras=row)
        chat, _ = env.init(row["prompt"])
        done = False
        while not done:
            said = "What has that been like for you?"  # your policy(chat)
            step = env.step(said)
            chat += [{"role": "assistant", "content": said}, *step["observations"]]
            done = step["done"]
        print(row["conversation"]["scenario"], f"reward {step['reward']:+.2f}", env.get_metrics())


if __name__ == "__main__":
    main()
