"""A small cross-encoder that reads what the seeker said and a reply together, and the chairs that hear by it.

The fold over turns and the two chairs are those of `esc_env.builtin` once more, with other functions inside: that
package's text is the fingerprint of `builtin`, which must not change, so nothing there can be made to take them.
"""
