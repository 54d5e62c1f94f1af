"""A trained model elsewhere: files of other code, graphs for other runtimes, a page for browsers, a folder for hubs."""
