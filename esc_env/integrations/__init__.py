"""The environment in the form that other frameworks want: small adapters, without rules of their own.

See docs/ecosystem.md.
"""
