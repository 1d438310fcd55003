"""Snapshots of disks: what of a disk has to be read, reading it as of one moment, and sending what lacks.

step        one order, from the guest's state to the committed image
planning    which chunks must be read, and what is known of the others (pure)
mapping     what qemu-img tells of touched and changed extents
reading     the content of a disk at one moment, of a guest that runs or not
uploading   read, hash, ask, send: every chunk is read once
keeping     what is kept beside the disk of the last snapshot
guard       a process of its own, which thaws and resumes the guest whatever becomes of the agent
"""
