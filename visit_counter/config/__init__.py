"""What the service is told from outside, checked before anything starts.

All mistakes are found and reported at once, each with the name of the setting and what is allowed. A `Settings`
object is never changed. No url with its password ever appears in a message.
"""
