"""The stage `measure`: what does a finished run reproduce?"""
