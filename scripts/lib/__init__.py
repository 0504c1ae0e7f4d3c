"""What the scripts share: mounting a device, running fio and the storm, checking what fio wrote."""
