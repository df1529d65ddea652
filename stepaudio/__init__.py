"""stepaudio: clone and edit a voice on one's own hardware with Step-Audio-EditX."""
