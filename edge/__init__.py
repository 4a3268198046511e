"""The appliance beside the scanner: receive, queue, infer, deliver, show. It never imports PyTorch."""
