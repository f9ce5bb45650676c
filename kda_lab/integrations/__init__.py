"""KDA Lab behind other projects' names: `flash_kda.fwd`, and a backend of flash-linear-attention."""
