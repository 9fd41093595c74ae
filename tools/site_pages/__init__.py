"""What the documentation site generates when it is built: the references, and the pages that lie outside docs/."""
