"""What each method will cost, from the configuration alone: nothing is trained, and no weights are read.

One file a family of methods, each with its formula. What is data is read, tokenised and put into the batches of the
run; what nobody knows before, such as who will write what, is taken at its most.
"""
