"""What the service talks about: pages, questions, answers. No input and output.

A value that exists is valid: code that holds a page need not check it again. Every other folder may import from here;
from here nothing else is imported but `errors`.
"""
