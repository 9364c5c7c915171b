"""An OpenEnv server, and one conversation with it over its typed client.

    python examples/openenv_support.py

Needs `pip install 'esc-env[openenv]'`.
"""

from __future__ import annotations

import socket
import threading

import uvicorn

from esc_env.integrations.openenv import Say, SupportClient, app


def main() -> None:
    """Serve on a free port, talk until the conversation ends, print what came of it."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app(scenarios="builtin:test"), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([place],), daemon=True)
        thread.start()
        with SupportClient(f"http://127.0.0.1:{port}").sync() as env:
            heard = env.reset(seed=0)
            while not heard.done:
                heard = env.step(Say(message="What has that been like for you?"))  # your policy(messages)
            print(f"{env.state().step_count} exchanges, reward {heard.reward:+.2f}")
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
