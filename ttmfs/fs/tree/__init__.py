"""What the mount shows: its folders and virtual files, and their texts. BO files are the namespace's."""
