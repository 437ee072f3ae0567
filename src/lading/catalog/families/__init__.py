"""The families: one file each, data first. A file makes one `FAMILY`; nothing outside this folder names one."""
