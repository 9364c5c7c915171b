"""PPO in one file, in the manner of CleanRL, on esc-env's own vector environment. Needs `pip install torch`.

    python examples/cleanrl_ppo.py --steps 40000

Eight conversations go on side by side; which strategy comes next is learned from a vector of the conversation and the
number of the turn. Prints how often the last conversations of training were solved.
*Source:* the recipe of CleanRL's `ppo.py` (Huang et al., JMLR 2022).
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

from esc_env.wrappers.vector import DenseReward, EmbeddingObservation, StrategyAction

ENVS, LENGTH, EPOCHS, PARTS = 8, 256, 4, 8
GAMMA, LAMBDA, CLIP, ENTROPY, RATE = 0.98, 0.95, 0.2, 0.01, 1e-3
TURNS = 8


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def main() -> None:
    """Train, and print how it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="turns to learn from")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    envs = EmbeddingObservation(DenseReward(StrategyAction(gym.make_vec("esc_env:ESConv-v0", num_envs=ENVS))))
    seen, _ = envs.reset(seed=given.seed)
    turn = np.zeros(ENVS)

    def features() -> torch.Tensor:
        return torch.tensor(np.concatenate([seen, np.eye(TURNS + 1)[turn.astype(int)]], 1), dtype=torch.float32)

    actor, critic = network(seen.shape[1] + TURNS + 1, 8), network(seen.shape[1] + TURNS + 1, 1)
    optimiser = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=RATE, eps=1e-5)
    ended: list[bool] = []
    fresh = np.zeros(ENVS, dtype=bool)  # whether the next step only begins a conversation: Gymnasium's next-step reset
    for _ in range(given.steps // (ENVS * LENGTH)):
        rows = []
        for _ in range(LENGTH):
            x = features()
            with torch.no_grad():
                choice, value = Categorical(logits=actor(x)), critic(x)[:, 0]
            action = choice.sample()
            seen, reward, terminated, truncated, infos = envs.step(action.numpy())
            over = terminated | truncated
            rows.append(
                (
                    x,
                    action,
                    choice.log_prob(action),
                    value,
                    torch.tensor(reward),
                    torch.tensor(over),
                    ~torch.tensor(fresh),
                )
            )
            ended += [infos["stop_reason"][place] == "solved" for place in np.flatnonzero(over)]
            turn = np.where(fresh, 0, turn + 1)
            fresh = over
        x, action, chance, value, reward, over, counts = map(torch.stack, zip(*rows, strict=True))
        with torch.no_grad():
            following, gain, gains = critic(features())[:, 0], torch.zeros(ENVS), []
            for t in reversed(range(LENGTH)):
                goes_on = (~over[t]).float()
                gain = reward[t] + GAMMA * following * goes_on - value[t] + GAMMA * LAMBDA * goes_on * gain
                gains.append(gain)
                following = value[t]
        advantage = torch.stack(gains[::-1]).float()
        wanted = advantage + value
        kept = torch.nonzero(counts.flatten())[:, 0]
        x, action, chance, advantage, wanted = (
            each.flatten(0, 1)[kept] for each in (x, action, chance, advantage, wanted)
        )
        for _ in range(EPOCHS):
            for part in torch.randperm(len(kept)).chunk(PARTS):
                choice = Categorical(logits=actor(x[part]))
                ratio = (choice.log_prob(action[part]) - chance[part]).exp()
                good = (advantage[part] - advantage[part].mean()) / (advantage[part].std() + 1e-8)
                policy = -torch.min(ratio * good, ratio.clamp(1 - CLIP, 1 + CLIP) * good).mean()
                error = (critic(x[part])[:, 0] - wanted[part]).square().mean()
                loss = policy + 0.5 * error - ENTROPY * choice.entropy().mean()
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], 0.5)
                optimiser.step()
        print(f"{len(ended)} conversations, of the last 200 solved: {100 * np.mean(ended[-200:]):.0f} %", flush=True)
    envs.close()


if __name__ == "__main__":
    main()
