"""What handing KV over between engines costs, and what it saves."""
