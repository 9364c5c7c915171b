"""The environment as other frameworks know theirs: each adapter is small and owns no logic. See docs/ecosystem.md."""
