"""What data may make this process read: the folders, hosts and limits of images and recordings, and their fetching."""
