"""The faces of Gymnasium: the environment, its vector form, the episode that both step, and their spaces."""
