"""What clients send and get, as OpenAI has it, with the fields that are stafette's own."""
