"""People judge blindly: which of two conversations supports better, or how well one does, in the browser.

What is asked is a `Study` (`study`), in the words of a `Guide` (`guide`); what people say is kept in a `Store`, an
SQLite file that holds no conversation (`store`). `app` serves it, `agreement` counts how far people agree, with each
other and with judges and critics. The commands are `esc annotate`, `esc annotate export`, `esc annotate agreement`.
"""
