"""The doors that put masks on and take them off."""
