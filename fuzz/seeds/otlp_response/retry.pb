2
(type.googleapis.com/google.rpc.RetryInfo
À„=