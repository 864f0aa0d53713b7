"""Pure functions, one module per official metric; nothing here imports torch.

`vqa_accuracy` and `infoseek` score answers, `prrecall` scores retrieval; `intervals` gives
confidence intervals and paired tests over questions.
"""
