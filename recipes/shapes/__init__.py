"""Recipe that draws, trains, evaluates and exports the ``shapes`` text-to-image pipeline."""
