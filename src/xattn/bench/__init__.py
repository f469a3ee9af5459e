"""Side by side with peers: identical weights and inputs, equal outputs, interleaved turns.

``cells`` and ``workloads/`` say what is measured, ``worker`` runs one engine in a process of its
own, ``rounds`` lets the engines take turns, ``equality`` throws out whoever did other work,
``aims`` holds the figures against what they should be, ``report`` and ``charts`` write them down.
"""
