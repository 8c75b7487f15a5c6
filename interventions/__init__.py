"""Methods that find or learn a change to a model and return it as an edit or a mask."""
