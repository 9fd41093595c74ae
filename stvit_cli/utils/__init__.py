"""The ground floor: files, text and the environment. Imports no torch and nothing of the package but `errors`."""
