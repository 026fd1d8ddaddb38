
	quota