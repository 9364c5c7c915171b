"""The interfaces of Gymnasium: the environment, its vector form, the episode that both step, and their spaces."""
