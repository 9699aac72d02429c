# Who may log in as root on every machine of the fleet: lines of ssh .pub files. Without
# one nobody could log in to a machine that is installed from here.
[
]
