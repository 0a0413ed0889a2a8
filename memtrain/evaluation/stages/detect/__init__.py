"""The stage `detect`: which of these prompts does a model memorize?"""
