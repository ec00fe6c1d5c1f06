"""From logits to tokens: sampling parameters, penalties, structured output, drafts."""
